"""Looking at recorded data before a model does: warnings in plain words, one HTML page, a ready entry for an unregistered folder."""

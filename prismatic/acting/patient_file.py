"""A file for HDF5 on a disk that may be full: HDF5 ends the process (a segmentation fault) some time after a write that it saw fail."""

from __future__ import annotations

import io
from pathlib import Path


class PatientFile(io.RawIOBase):
    """A new file, read and written; after a write that fails it takes everything and keeps nothing, and `error` says why."""

    def __init__(self, path: Path) -> None:
        """Raises OSError where there can be no such file."""
        super().__init__()
        self.error: OSError | None = None
        self._file = path.open("w+b", buffering=0)

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fills all of `buffer`: beyond the end of the file with zeros."""
        view = memoryview(buffer).cast("B")
        num_read = 0
        while num_read < len(view) and (count := self._file.readinto(view[num_read:])):
            num_read += count
        view[num_read:] = bytes(len(view) - num_read)
        return len(view)

    def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
        view = memoryview(data).cast("B")
        num_written = 0
        while num_written < len(view) and self.error is None:
            try:
                num_written += self._file.write(view[num_written:]) or 0
            except OSError as error:
                self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        try:
            return self._file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self._file.tell() if size is None else size

    def close(self) -> None:
        """Ends the file; harmless the second time."""
        if not self._file.closed:
            try:
                self._file.close()
            except OSError as error:  # some file systems say only now what they did not take
                self.error = self.error or error
        super().close()

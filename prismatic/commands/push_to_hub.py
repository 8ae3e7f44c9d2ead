"""Uploads a checkpoint folder to the Hub with a generated model card; refuses one that is not whole.

    python scripts/push_to_hub.py --checkpoint runs/my_run--10000_chkpt --repo_id me/my-policy --report runs/eval/report.json
    python scripts/push_to_hub.py --checkpoint runs/my_run--10000_chkpt --repo_id me/my-policy --dry_run     writes the card only

A README.md that is in the folder is uploaded as it is: write it with --dry_run, edit it, upload. The card quotes the command that
trained the policy, with the folders in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prismatic.cli import run_script


@dataclass
class PushConfig:
    """What goes where."""

    checkpoint: Path  # a whole checkpoint folder
    repo_id: str  # owner/name on the Hub
    report: Path | None = None  # report.json of an evaluation, for the card
    license: str | None = None  # for the card, as the Hub spells it: mit, apache-2.0, ...
    private: bool = False  # a new repository is visible to its owner only
    with_trainer_state: bool = False  # also what --resume needs
    dry_run: bool = False  # write README.md into the folder and list the files; upload nothing

    def __post_init__(self) -> None:
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id

        try:
            validate_repo_id(self.repo_id)
        except HFValidationError as error:
            raise ValueError(f"--repo_id: {error}. Pass owner/name, as in me/my-policy") from error
        if self.repo_id.count("/") != 1:
            raise ValueError(f"--repo_id is {self.repo_id!r}; expected owner/name, as in me/my-policy")


def main(config: PushConfig) -> None:
    """Checks, writes or takes the card, uploads."""
    from prismatic.publishing.card import CardOptions, build_card, read_report
    from prismatic.publishing.upload import CARD_FILE, files_to_upload, require_whole, upload

    folder = config.checkpoint.expanduser()
    require_whole(folder)
    files, path = files_to_upload(folder, config.with_trainer_state), folder / CARD_FILE
    if path.is_file():
        if config.report:
            read_report(config.report, folder)  # which refuses what must not stand on a card
        print(f"{path} is there already and is taken as it is; delete it to have it written again")
        card = path.read_text(encoding="utf-8")
    else:
        card = build_card(folder, CardOptions(config.repo_id, config.report, config.license))
    if not config.dry_run:
        print(f"uploaded to {upload(folder, files, card, config.repo_id, config.private)}")
        return
    path.write_text(card, encoding="utf-8")
    for file in files:
        print(f"{(folder / file).stat().st_size / 1e6:12.3f} MB  {file}")
    print(f"wrote {path}; nothing was uploaded")


def run() -> None:
    """Entry point."""
    run_script(main, PushConfig)

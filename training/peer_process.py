"""A process of peers_worker.py, asked and answered in lines of JSON."""

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path


class PeersError(RuntimeError):
    """A peer that cannot be measured, or an environment that has none; the message says why."""


class PeerProcess:
    """A peer that does jobs for as long as the block runs; command: peers_worker.py, or what speaks like it.

    Raises PeersError with its answer, or with the end of what it wrote to standard error if it gave none.
    """

    def __init__(self, command: list[str], folder: Path) -> None:
        self._log = (folder / f"{command[-1]}.log").open("w+", encoding="utf-8", errors="replace")
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=folder
        )
        self.version = ""

    def __enter__(self) -> "PeerProcess":
        try:
            self.version = str(self._answer()["version"])
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def targets_per_s(self, job: Mapping[str, object]) -> float:
        """How fast the peer does this job, a peers_worker.Job."""
        if self._process.stdin is None:
            raise PeersError("it takes no jobs")
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise PeersError(self._last_words()) from error
        answer = self._answer()
        return float(answer["targets"]) / float(answer["seconds"])

    def _answer(self) -> dict[str, str]:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise PeersError(self._last_words())
        answer: dict[str, str] = json.loads(line)
        if "error" in answer:
            raise PeersError(answer["error"])
        return answer

    def _last_words(self) -> str:
        status = self._process.wait(10)
        self._log.seek(0)
        lines = [line.strip() for line in self._log if line.strip()]
        return f"its process ended with status {status}: {lines[-1] if lines else 'without a word'}"

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()

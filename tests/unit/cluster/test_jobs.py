from types import SimpleNamespace

import cluster.jobs as jobs

LOG = "first line\nsecond line\nthird line\nlast\n"


class Broken:
    """A client whose log stream breaks: each connection begins at the log's start and ends after some characters."""

    def __init__(self, breaks):
        self.breaks = list(breaks)

    def get_job_info(self, submission_id):
        status = "RUNNING" if self.breaks else "SUCCEEDED"
        return SimpleNamespace(
            submission_id=submission_id, job_id=None, entrypoint="x", metadata={}, status=status, start_time=1,
            end_time=None, message="", driver_exit_code=0,
        )  # fmt: skip

    def get_job_logs(self, submission_id):
        return LOG if not self.breaks else LOG[: self.said]

    async def tail_job_logs(self, submission_id):
        self.said = self.breaks.pop(0)
        for start in range(0, self.said, 7):
            yield LOG[start : min(start + 7, self.said)]
        if self.breaks:
            raise RuntimeError("WebSocket connection closed unexpectedly with close code 1006")


def followed(*breaks):
    return list(jobs._follow(Broken(breaks), "http://h:1", "j"))


def test_a_dropped_connection_repeats_nothing(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    for breaks in ((len(LOG),), (10, len(LOG)), (3, 15, 15, 30, len(LOG)), (12, 5, len(LOG))):
        assert "".join(followed(*breaks)) == LOG


def test_last_lines_that_the_stream_lost_are_asked_for(monkeypatch):
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    assert "".join(followed(10)) == LOG
    assert "".join(followed(0)) == LOG

"""The run's report: one HTML file."""


def write(store) -> None:
    """Writes `WORKDIR/report.html`."""

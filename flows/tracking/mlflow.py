"""MLflow: an experiment in a SQLite file; what is there is asked for."""

from __future__ import annotations

import os

from opd_core.extensions import TrackerKind
from opd_core.tracker import About, Axis, Point

PARAMETER_LETTERS = 6000
"""Of a value; MLflow refuses longer ones."""


class MLflow:
    def __init__(self, about: About) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow import MlflowClient

        about.folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{about.folder.resolve()}/mlflow.db")
        known = self._client.get_experiment_by_name(about.project)
        experiment = (
            self._client.create_experiment(about.project, str(about.folder / "artifacts"))
            if known is None
            else known.experiment_id
        )
        runs = self._client.search_runs([experiment], f"tags.videoopd = '{about.name}'")
        if runs:
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id = self._begun(experiment, about)
        self._known = {
            (name, metric.step)
            for name in (runs[0].data.metrics if runs else ())
            for metric in self._client.get_metric_history(self._id, name)
        }

    def _begun(self, experiment: str, about: About) -> str:
        from mlflow.entities import Param

        made = self._client.create_run(
            experiment, tags={"videoopd": about.name}, run_name=about.name
        )
        values = {key: str(value)[:PARAMETER_LETTERS] for key, value in about.config.items()}
        params = [Param(key, value) for key, value in values.items()]
        run_id = str(made.info.run_id)
        for start in range(0, len(params), 100):  # more are refused
            self._client.log_batch(run_id, params=params[start : start + 100])
        return run_id

    def has(self, axis: Axis, name: str, number: int) -> bool:
        return (_name(name), number) in self._known

    def log(self, point: Point) -> None:
        from mlflow.entities import Metric

        at = int(point.at.timestamp() * 1000)
        values = {_name(name): value for name, value in point.values.items()}
        self._client.log_batch(
            self._id, metrics=[Metric(n, v, at, point.number) for n, v in values.items()]
        )

    def finish(self) -> None:
        self._client.set_terminated(self._id)


def _name(name: str) -> str:
    """As MLflow takes it: `tvg/r1@0.5/strict` is refused.

    >>> _name("tvg/r1@0.5/strict")
    'tvg/r1_0.5/strict'
    """
    return name.replace("@", "_")


TRACKER = TrackerKind(
    about="An MLflow experiment, kept in SQLite.",
    opened=MLflow,
    needs=("mlflow", "mlflow-skinny"),
    look="mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db",
)

"""Started by torchrun: one of several processes that train the tiny world of test_training.py."""

import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from test_training import config_for

from kairos_env.agents.training import loop, processes
from kairos_env.agents.training.learner import Learner

STOPPED = 4  # updates of the last stage that the copy has seen


def main(data: Path, out: Path, broken_off: Path) -> None:
    """Train to the end; on the way, copy what a run that was killed here would leave behind."""
    config, copy = config_for(data, out), config_for(data, broken_off).folder
    update, due = Learner.update, False

    def watched(self: Learner) -> dict[str, float]:
        nonlocal due
        if self.stage.name == "rollout" and self.step == STOPPED and processes.number() == 0:
            shutil.copytree(config.folder, copy)
        metrics = update(self)
        due = self.stage.name == "rollout" and self.step == STOPPED
        return metrics

    Learner.update = watched  # type: ignore[method-assign]
    loop.Clock.due = lambda self, minutes: due  # type: ignore[method-assign]
    loop.train(config)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

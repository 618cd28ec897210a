"""The learner: PPO on the rollouts of all dreamers, and its weights back to them.

    while the round lasts:
        send the weights         one version more
        gather the rollouts      a batch of dreams from each dreamer
        learn                    ten passes over all of them

With one dreamer these are the numbers of a run without any.
"""

import contextlib
import dataclasses
from pathlib import Path

from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger

from kairos_env.agents.imagine.algorithms import Learner, round_seed
from kairos_env.agents.imagine.config import ImagineConfig
from kairos_env.agents.imagine.envs import dream_env
from kairos_env.agents.scale.cluster import answers, hired, import_ray
from kairos_env.agents.scale.dreamers import Dreamer, fill
from kairos_env.catalogue import bundled_worlds
from kairos_env.worlds import World


class GatheringLearner(Learner):
    """A `Learner` whose dreams are dreamed by Ray actors.

    Args:
        config: The run; it says how many dreamers, and how many dreams each has.
        world: What they dream of.
        address: Of the Ray cluster, as for `hired`.
        threads: CPU threads of each dreamer.
        gpus: GPUs of each dreamer.
    """

    def __init__(
        self, config: ImagineConfig, world: World, *, address: str, threads: int, gpus: float
    ) -> None:
        dreamers = config.dreamers or 1
        every = dataclasses.replace(config, envs=config.envs * dreamers)
        # Of this environment only spaces and size are used: it is never begun.
        super().__init__(config, dream_env(every, world), batches=dreamers)
        assert isinstance(self.model, PPO), "the config refuses dreamers for others"
        self.ppo = self.model
        self.ppo.set_logger(Logger(None, []))
        self._hired = contextlib.ExitStack()
        sent = reachable(config)
        arguments = [(sent, number * config.envs, threads) for number in range(dreamers)]
        crew = hired(Dreamer, arguments, address=address, cpus=threads, gpus=gpus)
        self.dreamers = self._hired.enter_context(crew)

    def practise(self, steps: int) -> None:
        """One round of at least so many steps."""
        seed = round_seed(self.config.seed, self.rounds)
        self.ppo.set_random_seed(seed)
        ray, buffer = import_ray(), self.ppo.rollout_buffer
        versions: list[object] = []
        practised = 0
        while practised < steps:
            weights = {name: w.cpu() for name, w in self.ppo.policy.state_dict().items()}
            versions.append(ray.put(weights))
            fill(buffer, answers([d.roll_out.remote(seed, versions) for d in self.dreamers]))
            self.ppo.train()
            practised += buffer.buffer_size * buffer.n_envs
        self.steps += practised
        self.rounds += 1

    def close(self) -> None:
        """Dismiss the dreamers."""
        self._hired.close()
        super().close()


def reachable(config: ImagineConfig) -> ImagineConfig:
    """The run with whole paths: actors work in other folders."""
    world = config.world
    if world not in bundled_worlds() and Path(world).expanduser().exists():
        world = str(Path(world).expanduser().absolute())
    return dataclasses.replace(
        config, world=world, data=tuple(path.absolute() for path in config.data)
    )

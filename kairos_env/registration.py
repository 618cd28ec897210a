"""Names that `gymnasium.make` understands, given as strings so that nothing heavy is imported."""

import gymnasium

DREAM_ID = "Kairos-v0"
# Our own ground-truth scenes, registered as ordinary environments, with the low-level actions an
# episode may take.
SCENE_LIMITS = {"KairosReach-v0": 200, "KairosPush-v0": 300, "KairosOcclude-v0": 300}
SCENE_IDS = tuple(SCENE_LIMITS)


def register_envs() -> None:
    """Register the dream and our own scenes; safe to call more than once."""
    if DREAM_ID in gymnasium.registry:
        return
    gymnasium.register(
        DREAM_ID,
        entry_point="kairos_env.env:DreamEnv",
        vector_entry_point="kairos_env.vector_env:DreamVectorEnv",
    )
    for scene_id, limit in SCENE_LIMITS.items():
        gymnasium.register(
            scene_id,
            entry_point=f"kairos_env.real.scenes:{scene_id[:-3]}Env",
            max_episode_steps=limit,
        )

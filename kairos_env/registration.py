"""Names that `gymnasium.make` understands, given as strings so that nothing heavy is imported."""

import gymnasium

DREAM_ID = "Kairos-v0"
# Our own ground-truth scenes, registered as ordinary environments.
SCENE_IDS = ("KairosReach-v0", "KairosPush-v0", "KairosOcclude-v0")


def register_envs() -> None:
    """Register the dream and our own scenes; safe to call more than once."""
    if DREAM_ID in gymnasium.registry:
        return
    gymnasium.register(
        DREAM_ID,
        entry_point="kairos_env.env:DreamEnv",
        vector_entry_point="kairos_env.vector_env:DreamVectorEnv",
    )
    for scene_id in SCENE_IDS:
        gymnasium.register(scene_id, entry_point=f"kairos_env.real.scenes:{scene_id[:-3]}Env")

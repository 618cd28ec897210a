"""Does the dream rank policies as the truth does? The study behind `kairos study`.

config.py      sizes of a study
grades.py      policies of graded quality, which see in the dream what they would see in truth
openings.py    start states: short true histories that no training has seen
sides.py       a policy's episodes in truth, in the dream, and replayed in the dream
shards.py      all of it on disk, one file per policy and side: killed, it goes on where it was
ranking.py     r, MMRV, calibration, regret: pure functions of two lists of scores
agreement.py   the same with intervals, noise ceiling and chance level
drift.py       errors by horizon of replayed episodes, with floor and persistence
summary.py     everything measured, as one document
films.py       truth and dream side by side, moving
figures.py     plots
report.py      the page, from document, plots and films
compare.py     two studies side by side
cli.py         the command
"""

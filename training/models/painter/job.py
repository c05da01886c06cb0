"""What painting large pictures asks of a cluster; deploy/paint.yaml is made from it. Torch-free."""

from training.jobs import Job

JOB = Job(
    name="paint",
    does="Paints with",
    publishes=False,
    corpus="photo.jpg and painting.jpg in the folder pictures of the runs' volume, which you put there",
    options=(
        "--content=/runs/pictures/photo.jpg",
        "--style=/runs/pictures/painting.jpg",
        "--size=2048",
        "--iterations=500",
        "--film",
    ),
    memory="16Gi",
    deadline_h=12,
)

"""What training colorizer asks of a cluster; deploy/train-colorizer.yaml is made from it. Torch-free."""

from training.data.addresses import IMAGENETTE
from training.jobs import Job

JOB = Job(
    corpus="Imagenette's photographs (99 MB); better, landscapes of yours in a folder of the runs' volume (--corpus)",
    fetched_from=(IMAGENETTE,),
    memory="16Gi",
)

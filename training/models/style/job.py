"""What training style asks of a cluster; deploy/train-style.yaml is made from it. Torch-free."""

from dataclasses import replace

from training.data.addresses import IMAGENETTE
from training.jobs import Job

JOB = Job(
    corpus="paintings of your choice in the folder styles of the runs' volume, and Imagenette's photographs (99 MB)",
    fetched_from=(IMAGENETTE,),
    options=("--styles=/runs/styles",),
    memory="16Gi",
)
MULTINODE = replace(JOB, name="train-style-multinode", nodes=2, batch=4)

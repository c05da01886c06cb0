"""What training upscaler asks of a cluster; deploy/train-upscaler.yaml is made from it. Torch-free."""

from dataclasses import replace

from training.data.addresses import IMAGENETTE
from training.jobs import Job

JOB = Job(
    corpus="Imagenette's photographs (99 MB), and computer art that is drawn on the spot",
    fetched_from=(IMAGENETTE,),
    memory="16Gi",
)
MULTINODE = replace(JOB, name="train-upscaler-multinode", nodes=2, batch=16)

"""What training classifier asks of a cluster; deploy/train-classifier.yaml is made from it. Torch-free."""

from training.data.addresses import FASHION_MNIST
from training.jobs import Job

JOB = Job(
    corpus="Fashion-MNIST, 70,000 small gray pictures of garments (31 MB)",
    fetched_from=FASHION_MNIST,
    cpus=2,
    deadline_h=6,
)

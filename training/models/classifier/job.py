"""What training classifier asks of a cluster; deploy/train-classifier.yaml is made from it. Torch-free."""

from training.data.fashion_mnist import MIRRORS
from training.jobs import Job

JOB = Job(
    corpus="Fashion-MNIST, 70,000 small gray pictures of garments (31 MB)",
    fetched_from=MIRRORS,
    cpus=2,
    deadline_h=6,
)

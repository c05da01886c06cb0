"""What training wgan asks of a cluster; deploy/train-wgan.yaml is made from it. Torch-free."""

from training.jobs import Job

JOB = Job(corpus="three lines on black, drawn on the spot")

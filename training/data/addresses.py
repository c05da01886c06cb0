"""Where corpora are fetched from. Imports nothing: each job.py lists these addresses without reading a corpus."""

# The official addresses: the authors' repository, and Zalando's bucket, which has no https. On a cluster, a Job may
# connect to port 443 only (deploy/triton/networkpolicies.yaml).
FASHION_MNIST = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)
IMAGENETTE = "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz"

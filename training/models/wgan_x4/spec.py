"""The spec for serving the generator's pictures four times as large: an ensemble, so there is nothing to train."""

from serving.spec import Ensemble, Step, Tensor
from training.models.upscaler.spec import SCALE
from training.models.upscaler.spec import SPEC as UPSCALER
from training.models.wgan.spec import SIZE
from training.models.wgan.spec import SPEC as WGAN

SPEC = Ensemble(
    name="wgan_x4",
    summary="computer art from a latent vector, four times as large",
    inputs=WGAN.inputs,
    outputs=(Tensor(name="image", dtype="UINT8", shape=(SCALE * SIZE, SCALE * SIZE, 3)),),
    steps=(
        Step(model=WGAN, inputs={"latent": "latent"}, outputs={"image": "low_res"}),
        Step(model=UPSCALER, inputs={"low_res": "low_res"}, outputs={"image": "image"}),
    ),
)

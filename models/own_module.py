"""Settings of a module that a user's own file defines."""

from __future__ import annotations

from functools import cached_property

from flax import nnx

from hetjax.models.class_path import OwnPart, call_class_path
from hetjax.models.errors import ModelError


class OwnModule(OwnPart):
    """{class_path, init_args} of an NNX module, in the place of the config of one of ours.

    The class is called with `init_args` and `rngs`. Attributes of what it makes are read as those of a config: an
    encoder has `output_width`, and for images of one size `image_size` and `tokens_per_image`; a language model `width`
    and `vocab_size`.
    """

    def build(self, rngs: nnx.Rngs) -> nnx.Module:
        """Return the module. Raises ModelError where the class is not found or takes other arguments."""
        module = call_class_path(self.settings(), what="a module of your own", rngs=rngs)
        if not isinstance(module, nnx.Module):
            raise ModelError(f"{self.class_path} is no Flax NNX module; let the class inherit from flax.nnx.Module")
        return module

    @cached_property
    def _abstract(self) -> nnx.Module:
        with nnx.use_eager_sharding(False):
            return nnx.eval_shape(lambda: self.build(nnx.Rngs(0)))

    def __getattr__(self, name: str) -> object:
        if name.startswith("_") or "class_path" not in vars(self):
            raise AttributeError(name)
        try:
            abstract = self._abstract
        except AttributeError as error:  # of its own: as one of ours it would be taken for a lack of `name`
            raise ModelError(f"{self.class_path} cannot be made: {error}") from error
        try:
            return getattr(abstract, name)
        except AttributeError:
            raise AttributeError(
                f"{self.class_path} has no attribute {name}, which is read of it as of our own configs; set self.{name}"
            ) from None

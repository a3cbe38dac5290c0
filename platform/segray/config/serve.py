"""The settings of serving: which version, on what, and how much of it a stranger may ask for."""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.base import Fraction, Positive, Settings


class ServeConfig(Settings):
    """What answers requests."""

    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "champion"
    """Alias in the registry whose version is served; it is followed wherever it is moved."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one the machine has."""
    port: Annotated[int, Field(ge=1, lt=2**16)] = 8000
    """Port to listen on."""
    token_file: str | None = None
    """File that holds the bearer token requests have to bring; none lets everybody in."""
    replicas: Positive = 1
    """Replicas of the model that are always there."""
    most_replicas: Positive | None = None
    """Replicas under load; none takes as many as the cluster holds."""
    in_flight: Positive = 4
    """Requests for each replica at which another one is started."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes GPUs if the cluster has any."""
    threads: Positive = 1
    """CPUs of a replica."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the forward pass."""
    batch: Positive = 8
    """Images of one forward pass at most, all of one size: those that waited while the last one was computed."""
    window_above: Positive = 2**22
    """Images of more pixels are looked at in windows that slide over them."""
    most_mib: Annotated[float, Field(gt=0)] = 20.0
    """MiB of a request at most."""
    most_pixels: Annotated[int, Field(gt=0, le=2**27)] = 2**25
    """Pixels of an image at most."""
    most_images: Positive = 16
    """Images of a batch request at most."""
    at_once: Positive = 256
    """Images that are answered or wait at once; who brings more is sent away."""
    time_limit_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds after which a request is given up."""
    canary: Fraction = 0.0
    """Share of the requests that the challenger answers; the champion sees their images too, to be compared with."""
    shadow: Fraction = 0.0
    """Share of the requests whose images the challenger sees too, without answering, to be compared with."""
    poll_s: Annotated[float, Field(gt=0)] = 0.5
    """Seconds between two looks at the registry."""

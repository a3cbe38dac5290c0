"""Settings of serving: model version, resources and request limits."""

from typing import Annotated, Literal

from pydantic import Field

from segray.config.fields import Fraction, Positive, Settings


class ServeConfig(Settings):
    """HTTP server, replicas and request limits."""

    alias: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "champion"
    """Registry alias of the version to serve. The server follows the alias when it moves to another version."""
    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0 listens on all interfaces."""
    port: Annotated[int, Field(ge=1, lt=2**16)] = 8000
    """Port to listen on."""
    token_file: str | None = None
    """File with the bearer token that requests must send. By default, requests need no token."""
    replicas: Positive = 1
    """Minimum number of replicas of the model."""
    max_replicas: Positive | None = None
    """Maximum number of replicas under load. Defaults to the capacity of the cluster."""
    target_ongoing_requests: Positive = 4
    """Target number of concurrent requests per replica. Above it, another replica is started."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the replicas. auto uses GPUs if the cluster has any."""
    cpus_per_replica: Positive = 1
    """Number of CPUs per replica."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the forward pass."""
    max_batch_size: Positive = 8
    """Maximum number of images per forward pass. Waiting images of equal size are batched."""
    slide_above_pixels: Positive = 2**22
    """Number of pixels above which images are processed with sliding windows."""
    max_request_mib: Annotated[float, Field(gt=0)] = 20.0
    """Maximum size of a request in MiB."""
    max_response_mib: Annotated[float, Field(gt=0)] = 16.0
    """Maximum size of a response in MiB."""
    max_image_pixels: Annotated[int, Field(gt=0, le=2**27)] = 2**25
    """Maximum number of pixels per image. It is lower on a machine that needs longer than request_timeout_s."""
    max_batch_images: Positive = 16
    """Maximum number of images per batch request."""
    max_pending_images: Positive = 256
    """Maximum number of images in progress or waiting. Requests above it are rejected with status 429."""
    max_pending_mib: Annotated[float, Field(gt=0)] = 512.0
    """Maximum size in MiB of the pending request bodies, and also of the responses that clients have not read yet."""
    request_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Timeout of a request in seconds, from the end of its body to its response."""
    transfer_timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """Timeout in seconds of the transfer of a request body, and of the transfer of a response."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of reverse proxies whose header X-Forwarded-For contains the address of the client."""
    canary: Fraction = 0.0
    """Fraction of the requests that the challenger answers. The champion also processes them, for comparison."""
    shadow: Fraction = 0.0
    """Fraction of the requests that the challenger also processes for comparison, without answering them."""
    poll_s: Annotated[float, Field(gt=0)] = 0.5
    """Interval in seconds at which the registry is polled."""

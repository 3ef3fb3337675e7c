"""`rnnfast serve`: a server of the Open Inference Protocol."""

from __future__ import annotations

import click


@click.command()
@click.argument("sources", nargs=-1, required=True, metavar="FILE|FOLDER...")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen at.")
@click.option("--http-port", default=8000, show_default=True, help="The port of HTTP; 0 takes any free one.")
@click.option("--grpc-port", default=8001, show_default=True, help="The port of gRPC; 0 takes any free one.")
def serve(sources: tuple[str, ...], host: str, http_port: int, grpc_port: int) -> None:
    """Serve models over HTTP and gRPC by the Open Inference Protocol."""
    from rnnfast.server.run import run
    from rnnfast.server.settings import Settings

    run(Settings(sources, host=host, http_port=http_port, grpc_port=grpc_port), click.echo)

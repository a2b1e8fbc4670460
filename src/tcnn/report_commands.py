"""The commands that show, `report` and `explore`, made as those of `tcnn.commands`."""

from __future__ import annotations

from tcnn.commands import echo, network_of


def write_report(
    run: str, *, out: str | None = None, images: str | None = None, cnn: str | None = None
) -> int:
    """Write a run as one HTML page to look at: headline, network, gates, attention, robustness.

    Args:
        run: Folder that tcnn demo, recast, finetune, study or robustness wrote.
        out: Page to write, whole or not at all; null is report.html in the run's folder.
        images: Folder of pictures for the explorer; null takes some that the run was validated on.
        cnn: The network that was recast, as package.module:function, if its folder cannot build it.
    """
    from tcnn.errors import TCNNError
    from tcnn.report import page

    if out is not None and not out.strip():
        raise TCNNError("Expected --out to be a file, but it is empty.")
    network = None if cnn is None else network_of(cnn, pretrained=False)
    echo(f"Wrote {page.write(run, out, cnn=network, images=images)}")
    return 0


def explore_run(run: str, *, host: str = "127.0.0.1", port: int = 0, cnn: str | None = None) -> int:
    """Serve a run's page on this machine, where it takes pictures of your own to look at.

    Nobody else can reach it unless --host says so. Ctrl-C ends it.

    Args:
        run: Folder that tcnn demo, recast, finetune, study or robustness wrote.
        host: Address to bind to; 0.0.0.0 lets the whole network in.
        port: Port to bind to; 0 takes a free one.
        cnn: The network that was recast, as package.module:function, if its folder cannot build it.
    """
    import contextlib

    from tcnn.errors import TCNNError
    from tcnn.report import contents, page
    from tcnn.report.looking import look
    from tcnn.report.server import Explorer

    if not 0 <= port < 2**16:
        raise TCNNError(f"Expected --port from 0 to 65535, but got {port}.")
    found = contents.read(run)
    network = None if cnn is None else network_of(cnn, pretrained=False)
    seen = look(found, cnn=network)
    if seen.lens is None or not seen.layers:
        raise TCNNError(seen.failure)
    html = page.page(found, seen, live=True)
    try:
        server = Explorer(html, seen.lens, host, port)
    except OSError as error:
        raise TCNNError(
            f"Expected an address to serve at, but {host} port {port} says: "
            f"{error.strerror or error}: give another --host or --port."
        ) from error
    with server, contextlib.suppress(KeyboardInterrupt):
        echo(f"Serving {run} at {server.address} until Ctrl-C")
        server.serve_forever()
    return 0

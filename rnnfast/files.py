"""Files that are there as a whole or not at all."""
import os
import tempfile


def write_whole(path, data):
    """Write bytes to `path`: into a new file beside it, which is then renamed, so that what was there before stays
    until all is written."""
    folder, name = os.path.split(os.fspath(path))
    with tempfile.TemporaryDirectory(prefix=".rnnfast-", dir=folder or ".") as staging:
        staged = os.path.join(staging, name)
        with open(staged, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staged, path)

"""What the command line can do; each mode is `run(config, workdir, ...)`."""

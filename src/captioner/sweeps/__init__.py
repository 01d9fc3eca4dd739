"""Many runs from one command: a grid or a study, on any of Hydra's launchers, resumable."""

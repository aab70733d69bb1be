"""The Prefect server: which one, started how, ended when."""

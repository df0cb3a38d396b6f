"""What training makes: adapters of every method, their files, versions and runs."""

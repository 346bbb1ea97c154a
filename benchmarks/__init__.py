"""What measures: each publishes a file of `results/`, or is timed by pytest-benchmark."""

"""What an update gives away without a search: labels, the last layer, its features."""

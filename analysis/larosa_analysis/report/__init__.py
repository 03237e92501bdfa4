"""What is read: the HTML report, and the tables inside README and docs."""

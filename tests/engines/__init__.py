"""`run` inside the engines that people use: each test is with the real engine, or skipped where that is missing."""

"""Measure rnnfast next to the engines that people would pick instead: `python -m bench`."""

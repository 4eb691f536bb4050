"""Recordings, pairs and corpora: everything that turns files into mono waveforms at one rate."""

"""Region-indexed probes: a frozen encoder's tokens, sorted by region, one linear probe a region.

- `pooling`: means of tokens by region
- `core`, `decision`: `RegionProbes`, and decisions that name the regions they rest on
- `audio`: frames of a speech encoder by kind of sound or by phone, patches of a spectrogram by band
- `images`: patches of a vision transformer by part of the face
- `measure`, `plot`: how well a region tells spoofed recordings from real ones
"""

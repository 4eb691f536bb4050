"""Words about an explanation: which cells, what is there, and sentences that can be checked.

- `schema`: `Report`, `Sentence`, `CellReport`, and the `Narrator` protocol
- `fields`, `phones`: when, which band and which kind of sound, by rule
- `measurements`, `kinds`: numbers of a cell, and the kind of artifact that they speak for
- `calibration`: what those numbers are in genuine speech
- `rules`: `RuleNarrator`, which needs no model
- `prompts`, `parsing`, `vlm`: a vision-language model as narrator
- `rewards`, `policy`: what it is trained with
"""

"""Recordings, pairs and corpora: everything that turns files into mono waveforms at one rate.

Every name has one home, and none is repeated here:

- `audio`: ``load_audio``, ``open_audio``, ``write_audio``
- `pairs`: ``Pair``, ``load_pair``, ``measure_pair``, ``paired_folder``
- `manifest`: ``read_manifest``, ``write_manifest``
- `vocv4`, `librisevoc`: the loaders of these corpora
- `alignment`: ``align`` by one shift, ``dtw_align`` frame by frame
- `vocoders`: ``vocoder_bank``, ``GriffinLim``, ``World``, ``Lpc``; `codecs`: ``Codec``
- `copies`: ``make_pair`` of one recording; `synthesis`: ``make_pairs`` of many, into a folder
- `rawboost`: ``RawBoost``, alike for all members of a pair
- `voice`: ``synthesise_voice``, and the example of the package

Behind `audio` stand `decoding`, `containers` and `samples`, behind the vocoders `mel`, and `seeds`
behind all that is drawn.
"""

"""A million recordings: a manifest in, parquet parts out, and no row lost or doubled on the way.

>>> from specsegdiff.bulk import explain_corpus, mask_of, read_parts
>>> if __name__ == "__main__":  # worker processes import the script anew
...     print(explain_corpus("manifest.csv", "maps"))  # doctest: +SKIP
...     for row in read_parts("maps"):  # doctest: +SKIP
...         print(row["id"], row["p_spoof"], mask_of(row).shape)

``manifest`` says which recordings, ``plan`` cuts them into shards, ``rows`` says what is kept of
each, ``parts`` writes and reads them, ``shards`` is the loop over the files of one, ``settings``
the explainer, ``stream`` gives the rows to a training. ``corpus`` runs the shards in the processes
of ``workers``, and ``ray_data`` on a Ray cluster; ``place`` knows which of many machines this is,
``stopping`` when to end.
"""

from specsegdiff.bulk.corpus import Summary, explain_corpus
from specsegdiff.bulk.parts import read_parts
from specsegdiff.bulk.ray_data import explain_on_ray
from specsegdiff.bulk.rows import heatmap_of, mask_of, thumbnail_of
from specsegdiff.bulk.settings import Settings
from specsegdiff.bulk.stream import CorpusRows

__all__ = [
    "CorpusRows",
    "Settings",
    "Summary",
    "explain_corpus",
    "explain_on_ray",
    "heatmap_of",
    "mask_of",
    "read_parts",
    "thumbnail_of",
]

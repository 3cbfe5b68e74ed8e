"""Data sets in the formats that people have: files -> samples -> rows.

    reader = open_set(Path("llava/train.json"))          # readers.py: the kind is read from the content
    stream = Mixture([(reader, 1.0)], seed=0)            # mixture.py: shuffled, weighted, resumable
    encoded = encode(next(stream), tokenizer, count)     # encode.py: ids, labels, where media stand
    rows = pack([[encoded]], length)                     # packing.py: many samples a row, none sees another

A new format is one file with one subclass of `reader.Reader` and one line of `readers.READERS`. Nothing here imports
torch but `objective.py`; pyarrow is imported when a Parquet or Arrow file is opened.
"""

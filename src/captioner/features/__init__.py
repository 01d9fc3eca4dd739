"""The encoder's features of images.

source.py         what a batch's images come from: cached features or image files
extraction.py     features of all images of a data set, computed once into the cache
cache.py          the cache's folder on disk
store.py          features by image name: from the cache, or computed by the user
rows.py           rows of a feature array and their statistics, the array not in memory
encoding.py       image files -> features, block by block, in threads or beside worker processes
device_images.py  image files -> normalised tensors, decoded and resized on a device
"""

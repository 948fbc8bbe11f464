"""The uses of keyed randomness in training, each with a number of its own: two uses of one stream would be correlated.

A number is never given to another use, and never changed: recorded runs could not be had again.
"""

(FLIP, SHIFT_Y, SHIFT_X, CUTOUT_Y, CUTOUT_X, MIXUP_SHARE, NETWORK) = range(1, 8)
(CROP_AREA, CROP_ASPECT, CROP_Y, CROP_X) = range(8, 12)
(MIX_KIND, CUTMIX_SHARE, CUTMIX_Y, CUTMIX_X) = range(12, 16)
(ERASE, ERASE_AREA, ERASE_ASPECT, ERASE_Y, ERASE_X) = range(16, 21)
SAMPLING = 21
POLICY = 32
"""Operation, strength and sign of the n-th change of a policy are POLICY + 3 n and the two after it."""

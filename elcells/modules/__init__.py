"""Images of whole modules, cut into their cells."""

import cv2

cv2.setNumThreads(1)  # modules are cut in several processes, and in the time of the network's threads

"""MaxMin: boundaries at the smallest and largest value seen; nothing is trained (Jacob et al., CVPR 2018)."""

from ..calibration.method import Method

METHOD = Method("maxmin", "MaxMin", "Jacob et al., CVPR 2018, section 3.1; PassionSR, Table 2")

"""How good a network is: metrics, calibration, plots, reports."""

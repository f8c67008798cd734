"""The one palette of pages, overlays and plots: Okabe and Ito's, which people with any kind of colour vision can tell
apart, also on a dark image."""

NO_DEFECT = "no defect"
TOO_DARK_VERDICT = "nearly black"
DARK_VERDICT = "dark"  # of a cell that was judged, but has no call
VERDICT_COLOURS = {
    NO_DEFECT: "#bbbbbb",
    "crack": "#e69f00",
    "inactive": "#56b4e9",
    "crack and inactive": "#cc79a7",
    DARK_VERDICT: "#f0e442",
    TOO_DARK_VERDICT: "#009e73",
}
OTHER_COLOUR = "#d55e00"  # of what a network of other classes says
CLASS_COLOURS = ("#e69f00", "#56b4e9", "#d55e00", "#0072b2", "#f0e442", "#009e73")  # crack, inactive, others


def class_colour(k):
    """The colour of class number k."""
    return CLASS_COLOURS[k % len(CLASS_COLOURS)]

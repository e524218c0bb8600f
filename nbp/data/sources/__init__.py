"""Where videos come from: each module makes or checks one data set and writes its annotation lists."""

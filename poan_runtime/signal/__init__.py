"""What the scanner measured: its native resolution, the measured band, the noise. numpy only."""

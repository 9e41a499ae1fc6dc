"""The mathematics: processes, scales, times, guidance, samplers, losses. No networks here."""

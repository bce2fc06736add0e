"""`python -m fusionrun`, and what torchrun starts with `-m fusionrun`."""

if __name__ == "__main__":
    try:
        from fusionrun.cli import script
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    script()

"""`python -m rolemesh.llama`: how the child supervisor starts rolemesh-llama."""

from rolemesh.llama.main import main

if __name__ == "__main__":
    main()

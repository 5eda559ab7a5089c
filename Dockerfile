# The server alone, with the example application inside. compose.yaml has it with its databases.
#
#     docker build -t reattach .
#     docker run -p 8000:8000 -e REATTACH_AUTH=jwt -e REATTACH_JWT_SECRET=... \
#         -e REATTACH_DATABASE=postgresql://... reattach

FROM python:3.13-slim AS build
RUN apt-get update && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN make wheel

FROM python:3.13-slim
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/reattach reattach
COPY --from=build /source/constraints.txt /source/dist/*.whl /tmp/
RUN pip install --no-cache-dir -c /tmp/constraints.txt /tmp/*.whl && rm /tmp/*.whl /tmp/constraints.txt
USER reattach
WORKDIR /var/lib/reattach
EXPOSE 8000
# In the container's own network: whoever reaches it needs a token, or it refuses to start.
ENTRYPOINT ["reattach"]
CMD ["serve", "--host", "0.0.0.0", "--port", "8000", "--json-logs"]
# SIGTERM (what `docker stop` sends) drains: connections are told to come back elsewhere.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
